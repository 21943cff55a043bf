"""The HTTP/2 protocol by tables, without sockets: what it says to a server, and hears from it.

Subject: `transport/_http2_protocol.py`, `transport/_http2_stream.py`.
"""

from types import SimpleNamespace
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpcore
import hyperframe.frame
import pytest
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from httpx_production.transport import _http2_protocol
from httpx_production.transport._http2_protocol import MOST_UNREAD, SPARE_WINDOW, HTTP2Protocol
from httpx_production.transport._http2_stream import (
    STREAM_WINDOW,
    HTTP2Stream,
    HTTP11Required,
    NotProcessed,
)

CODES = h2.settings.SettingCodes


class Peers:
    """Our protocol, and h2's server at the other end; nothing in between."""

    def __init__(self, **settings: int) -> None:
        self.protocol = HTTP2Protocol()
        self.protocol.initiate()
        self.server = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        )
        values = {getattr(CODES, name): value for name, value in settings.items()}
        self.server.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.server.initiate_connection()
        self._encoder = Encoder()
        self.heard: list[Any] = []  # by the server
        self.deliver()

    def deliver(self) -> None:
        """Carry what waits in both directions."""
        self.heard += self.server.receive_data(self.protocol.data_to_send())
        if data := self.server.data_to_send():
            self.protocol.receive(data)
            self.heard += self.server.receive_data(self.protocol.data_to_send())

    def begin(self, method: str = "GET", **options: Any) -> HTTP2Stream:
        stream = self.protocol.begin(request(method, **options))
        self.deliver()
        return stream

    def respond(self, stream: HTTP2Stream, *fields: tuple[str, str], end: bool = False) -> None:
        self.server.send_headers(stream.id, [(":status", "200"), *fields], end_stream=end)
        self.deliver()

    def send(
        self, stream: HTTP2Stream, data: bytes, *, end: bool = False, padding: int = 0
    ) -> None:
        self.server.send_data(stream.id, data, end_stream=end, pad_length=padding or None)
        self.deliver()

    def frames(self, *frames: Frame) -> list[HTTP2Stream]:
        """Frames that h2's server would not send; return the streams that they concern."""
        return list(self.protocol.receive(b"".join(frame.serialize() for frame in frames)))

    def head(self, stream: HTTP2Stream, *fields: tuple[str, str], end: bool = False) -> Frame:
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return HeadersFrame(stream.id, self._encoder.encode(fields), flags=flags)

    def granted(self, stream_id: int) -> int:
        """How much of a window was opened again."""
        return sum(
            event.delta
            for event in self.heard
            if isinstance(event, h2.events.WindowUpdated) and event.stream_id == stream_id
        )

    def resets(self) -> list[tuple[int, int]]:
        """Which streams the client has reset, and why."""
        resets = [event for event in self.heard if isinstance(event, h2.events.StreamReset)]
        return [(event.stream_id, event.error_code) for event in resets]


def request(method: str = "GET", **options: Any) -> httpcore.Request:
    headers = options.pop("headers", [("Host", "example.com")])
    request = httpcore.Request("GET", "https://example.com/path", headers=headers, **options)
    request.method = method.encode()
    return request


UPLOAD = [("Host", "example.com"), ("Content-Length", "300000")]


# --- requests ---------------------------------------------------------------------------------


def test_it_says_who_it_is() -> None:
    """No push, a hundred streams, 64 KiB of headers; the connection's window is 32 MiB."""
    peers = Peers()
    settings = peers.server.remote_settings
    assert settings.enable_push == 0
    assert settings.max_concurrent_streams == 100
    assert settings.max_header_list_size == 65536
    assert settings.initial_window_size == STREAM_WINDOW == 128 * 1024
    assert peers.granted(0) == MOST_UNREAD == 32 * 2**20
    said = next(one for one in peers.heard if isinstance(one, h2.events.RemoteSettingsChanged))
    assert CODES.ENABLE_CONNECT_PROTOCOL not in said.changed_settings  # some servers balk at it


def test_headers_are_http2_s() -> None:
    """Names in lower case, the host as :authority, nothing about the connection."""
    peers = Peers()
    headers = [("Host", "a.test:8"), ("X-Name", "Value"), ("Transfer-Encoding", "chunked")]
    stream = peers.begin("POST", headers=headers)
    (event,) = [one for one in peers.heard if isinstance(one, h2.events.RequestReceived)]
    assert event.headers == [
        (b":method", b"POST"),
        (b":authority", b"a.test:8"),
        (b":scheme", b"https"),
        (b":path", b"/path"),
        (b"x-name", b"Value"),
    ]
    assert not stream.is_sent


def test_a_header_goes_as_it_is() -> None:
    """In hpack's Huffman codes a token of 4 KB would take 5 ms, in each request."""
    peers, token = Peers(), "Bearer " + "abc." * 1000
    peers.protocol.begin(request(headers=[("Host", "a.test"), ("Authorization", token)]))
    assert token.encode() in (sent := peers.protocol.data_to_send())
    assert b"a.test" in sent


def test_the_url_s_host_stands_in_for_the_header() -> None:
    """A request that was built by hand may have none."""
    peers = Peers()
    assert peers.begin(headers=[]).is_sent
    (event,) = [one for one in peers.heard if isinstance(one, h2.events.RequestReceived)]
    assert (b":authority", b"example.com") in event.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("te", "gzip"),
        ("content-length", "1x"),
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\x00b"),
        ("x", " a"),
        ("x", "a "),
        ("x y", "a"),
        ("x:", "a"),
        ("", "a"),
        ("x\x00", "a"),
    ],
)
def test_an_illegal_header_is_refused_before_anything_is_sent(name: str, value: str) -> None:
    """By name, never by value; the connection, whose state is as it was, goes on."""
    peers = Peers()
    with pytest.raises(httpcore.LocalProtocolError, match="illegal request") as caught:
        peers.begin(headers=[("Host", "example.com"), (name, value)])
    assert "b: c" not in str(caught.value)
    assert peers.protocol.streams == {}
    assert peers.protocol.capacity == 100
    peers.respond(peers.begin())


@pytest.mark.parametrize("value", ["", "a", "a b", "a\tb", "\xe9", "trailers"])
@pytest.mark.parametrize("name", ["x", "x-1", "te"])
def test_a_legal_header_is_sent(name: str, value: str) -> None:
    """What HTTP/1.1 would take too; of `te` the one value that HTTP/2 allows."""
    if (name == "te") == (value == "trailers"):
        peers = Peers()
        peers.begin(headers=[(name, value.encode("latin-1"))])
        (event,) = [one for one in peers.heard if isinstance(one, h2.events.RequestReceived)]
        assert (name.encode(), value.encode("latin-1")) in event.headers


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "G\x00"])
def test_an_illegal_method_is_refused(method: str) -> None:
    """As in HTTP/1.1."""
    with pytest.raises(httpcore.LocalProtocolError, match="method"):
        Peers().begin(method)


def test_an_illegal_target_is_refused() -> None:
    """A space in it would end it in HTTP/1.1, and so it is refused here."""
    illegal = request()
    illegal.url = httpcore.URL(scheme=b"https", host=b"a.test", target=b"/a b")
    with pytest.raises(httpcore.LocalProtocolError, match="target"):
        Peers().protocol.begin(illegal)


def test_a_body_goes_out_as_far_as_the_windows_reach() -> None:
    """In frames of the size that the server takes; the rest waits."""
    peers = Peers()
    stream = peers.begin("POST", headers=UPLOAD)
    rest = peers.protocol.send(stream, memoryview(bytes(300_000)))
    assert len(rest) == 300_000 - 65535
    assert peers.protocol.window(stream) == 0
    assert peers.protocol.send(stream, rest) == rest
    peers.deliver()
    pieces = [len(one.data) for one in peers.heard if isinstance(one, h2.events.DataReceived)]
    assert pieces == [16384, 16384, 16384, 16383]
    peers.server.increment_flow_control_window(2**20)
    peers.server.increment_flow_control_window(2**20, stream.id)
    peers.deliver()
    while rest:
        before = len(rest)
        rest = peers.protocol.send(stream, rest)
        assert before - len(rest) <= _http2_protocol.BATCH
    peers.protocol.end(stream)
    peers.deliver()
    assert stream.is_sent
    assert any(isinstance(one, h2.events.StreamEnded) for one in peers.heard)


def test_what_goes_wrong_inside_is_httpcore_s_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """encode/httpx#3072: no KeyError of h2's gets out."""
    peers = Peers()
    stream = peers.begin("POST", headers=UPLOAD)

    def broken(*args: Any) -> None:
        raise KeyError(1)

    monkeypatch.setattr(peers.protocol.state, "send_data", broken)
    with pytest.raises(httpcore.LocalProtocolError, match="KeyError: 1"):
        peers.protocol.send(stream, memoryview(b"x"))


def test_a_step_that_ctrl_c_ends_leaves_the_connection_torn() -> None:
    """From its begin to its end it counts so; what goes wrong within it is an end, too."""
    whole = Peers().protocol.whole
    assert not whole.is_torn()
    with whole:
        with whole:
            assert whole.is_torn()
        assert whole.is_torn()
    assert not whole.is_torn()
    with pytest.raises(OSError, match="reset"), whole:
        raise OSError("reset")
    assert not whole.is_torn()
    with pytest.raises(KeyboardInterrupt), whole:
        raise KeyboardInterrupt
    assert whole.is_torn()


def test_no_stream_is_opened_that_the_server_would_refuse() -> None:
    """Nor one before its SETTINGS are here, beside the first."""
    protocol = HTTP2Protocol()
    protocol.initiate()
    assert protocol.capacity is None
    protocol.begin(request())
    with pytest.raises(httpcore.ConnectionNotAvailable):
        protocol.begin(request())
    peers = Peers(MAX_CONCURRENT_STREAMS=2)
    assert peers.protocol.capacity == 2
    for _ in range(2):
        peers.begin()
    with pytest.raises(httpcore.ConnectionNotAvailable):
        peers.begin()


@pytest.mark.parametrize("limit", [101, 2**31])
def test_no_more_than_a_hundred_streams(limit: int) -> None:
    """Whatever the server allows."""
    assert Peers(MAX_CONCURRENT_STREAMS=limit).protocol.capacity == 100


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (h2.exceptions.TooManyStreamsError("101"), httpcore.ConnectionNotAvailable),
        (h2.exceptions.NoAvailableStreamIDError("2**31"), httpcore.ConnectionNotAvailable),
        (h2.exceptions.ProtocolError("odd"), httpcore.LocalProtocolError),
    ],
)
def test_h2_has_the_last_word_on_a_stream(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception, error: type[Exception]
) -> None:
    """What it refuses may have changed its state half-way: nobody else may use the connection."""
    peers = Peers()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise refusal

    monkeypatch.setattr(peers.protocol.state, "send_headers", refuse)
    with pytest.raises(error):
        peers.begin()
    assert peers.protocol.capacity == 0
    assert peers.protocol.streams == {}


@pytest.mark.parametrize(
    ("window", "is_held_up"), [(0, False), (50_000, False), (65_535, False), (100_000, True)]
)
def test_a_body_is_held_up_by_the_window_that_all_share(window: int, is_held_up: bool) -> None:
    """Not where its own is used up, too: then the server doesn't want it, whoever else sends."""
    peers = Peers(INITIAL_WINDOW_SIZE=window)
    stream = peers.begin("POST", headers=UPLOAD)
    rest = memoryview(bytes(65_535))
    while rest and peers.protocol.window(stream):
        rest = peers.protocol.send(stream, rest)
    assert peers.protocol.is_held_up(stream) is is_held_up


# --- responses --------------------------------------------------------------------------------


def test_a_body_is_not_written_out_in_hexadecimal(monkeypatch: pytest.MonkeyPatch) -> None:
    """By h2, for a log of its own: it costs more than all else that is done with a frame."""
    written: list[int] = []
    hexlify = hyperframe.frame.binascii.hexlify
    spy = SimpleNamespace(hexlify=lambda data: written.append(len(data)) or hexlify(data))
    peers = Peers()
    stream = peers.begin()
    peers.respond(stream)
    frame = DataFrame(stream.id, bytes(16_000))
    monkeypatch.setattr(hyperframe.frame, "binascii", spy)
    repr(frame)
    assert written == [16_000]  # as the spy would notice
    assert peers.frames(frame) == [stream]
    assert (written, stream.take()) == ([16_000], bytes(16_000))


def test_a_response_is_taken_in_piece_by_piece() -> None:
    """Headers without HTTP/2's own, then the body, then its end."""
    peers = Peers()
    stream = peers.begin()
    assert not stream.has_headers()
    peers.respond(stream, ("x", "1"))
    assert (stream.status, stream.headers) == (200, [(b"x", b"1")])
    assert stream.has_headers()
    assert not stream.is_readable()
    peers.send(stream, b"a")
    assert stream.is_readable()
    assert stream.take() == b"a"
    assert not stream.is_readable()
    peers.send(stream, b"b")
    peers.send(stream, b"c", end=True)
    assert stream.is_finished()
    assert stream.take() == b"bc"
    assert stream.is_readable()
    assert stream.take() is None


def test_headers_that_http2_forbids_are_no_reason_to_fail() -> None:
    """A response with `connection`, or a name in upper case, is taken as httpcore takes it."""
    peers = Peers()
    stream = peers.begin()
    peers.frames(peers.head(stream, (":status", "200"), ("connection", "close"), ("X-Name", "1")))
    assert stream.headers == [(b"connection", b"close"), (b"X-Name", b"1")]
    assert peers.protocol.capacity == 100


@pytest.mark.parametrize("status", ["", "20", "2000", "abc"])
def test_a_response_needs_a_status(status: str) -> None:
    """Of three digits; h2 lets it pass when it doesn't validate."""
    peers = Peers()
    stream = peers.begin()
    peers.frames(peers.head(stream, (":status", status), ("x", "1"), end=True))
    assert stream.has_headers()
    with pytest.raises(httpcore.RemoteProtocolError, match="without a status"):
        stream.take()


@pytest.mark.parametrize(
    ("method", "status", "data", "error"),
    [
        ("GET", "200", b"12345", None),
        ("GET", "200", b"1234", "4 bytes where content-length says 5"),
        ("GET", "200", b"1", "1 byte where content-length says 5"),
        ("GET", "200", b"123456", "6 bytes where content-length says 5"),
        ("GET", "200", b"", "0 bytes where content-length says 5"),
        ("HEAD", "200", b"", None),
        ("GET", "204", b"", None),
        ("GET", "304", b"", None),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_the_body_has_the_length_that_was_promised(
    method: str, status: str, data: bytes, error: str | None, at_once: bool
) -> None:
    """Or the stream fails, it alone; whether its end comes with the data or by itself."""
    peers = Peers()
    stream, neighbour = peers.begin(method), peers.begin()
    head = peers.head(stream, (":status", status), ("content-length", "5"), end=not data)
    flags = ["END_STREAM"] if at_once else []
    frames = [DataFrame(stream.id, data, flags=flags)] if data else []
    end = [] if at_once or not data else [DataFrame(stream.id, b"", flags=["END_STREAM"])]
    assert peers.frames(head, *frames, *end) == [stream]
    if error is None:
        assert (stream.take() or b"") == data
        assert stream.ended
    else:
        assert isinstance(stream.error, httpcore.RemoteProtocolError)
        assert error in str(stream.error)
    peers.frames(peers.head(neighbour, (":status", "200"), end=True))
    assert neighbour.ended


def test_a_body_that_is_too_long_is_news_for_its_reader_and_the_server() -> None:
    """Who waits for the rest is woken by the frame alone; the server hears what is wrong."""
    peers = Peers()
    stream = peers.begin()
    peers.frames(peers.head(stream, (":status", "200"), ("content-length", "1")))
    assert peers.frames(DataFrame(stream.id, b"four")) == [stream]
    peers.deliver()
    assert peers.resets() == [(stream.id, ErrorCodes.PROTOCOL_ERROR)]


def test_a_frame_that_breaks_the_protocol_is_the_server_s_fault() -> None:
    """Not that of a request of ours, which would not be sent again."""
    peers = Peers()
    peers.begin()
    with pytest.raises(httpcore.RemoteProtocolError, match="99"):
        peers.frames(DataFrame(99, b"for nobody"))


RESETS = [
    (ErrorCodes.INTERNAL_ERROR, False, httpcore.RemoteProtocolError, "INTERNAL_ERROR"),
    (ErrorCodes.INTERNAL_ERROR, True, httpcore.RemoteProtocolError, "INTERNAL_ERROR"),
    (0x99, False, httpcore.RemoteProtocolError, "153"),
    (ErrorCodes.REFUSED_STREAM, False, httpcore.RemoteProtocolError, r"\(REFUSED_STREAM\)"),
    (ErrorCodes.REFUSED_STREAM, True, httpcore.RemoteProtocolError, "reset the stream: REFUSED"),
    (ErrorCodes.HTTP_1_1_REQUIRED, False, HTTP11Required, "HTTP/1.1"),
    (ErrorCodes.HTTP_1_1_REQUIRED, True, httpcore.RemoteProtocolError, "HTTP_1_1_REQUIRED"),
    (ErrorCodes.NO_ERROR, False, httpcore.RemoteProtocolError, "NO_ERROR"),
]


@pytest.mark.parametrize(("code", "answered", "kind", "text"), RESETS)
def test_a_reset_says_what_it_means(
    code: int, answered: bool, kind: type[Exception], text: str
) -> None:
    """REFUSED_STREAM and HTTP_1_1_REQUIRED mean something special before the answer alone."""
    peers = Peers()
    stream = peers.begin()
    head = [peers.head(stream, (":status", "200"))] if answered else []
    assert peers.frames(*head, RstStreamFrame(stream.id, error_code=code)) == [stream]
    with pytest.raises(kind, match=text):
        stream.take()
    assert type(stream.error) is kind
    assert peers.protocol.capacity == 100


def test_a_reset_after_the_end_means_nothing() -> None:
    """NO_ERROR: the server doesn't want the rest of the upload; the answer is whole."""
    for frames in (["END_STREAM"], []):
        peers = Peers()
        stream = peers.begin("POST", headers=UPLOAD)
        peers.frames(
            peers.head(stream, (":status", "413"), ("content-length", "2")),
            DataFrame(stream.id, b"no", flags=frames),
            RstStreamFrame(stream.id, error_code=ErrorCodes.NO_ERROR),
        )
        assert stream.is_finished()
        assert (stream.take(), stream.take()) == (b"no", None)


def test_a_reset_with_an_error_after_all_of_the_body_is_an_error() -> None:
    """The server takes back what it has sent."""
    peers = Peers()
    stream = peers.begin()
    peers.frames(
        peers.head(stream, (":status", "200"), ("content-length", "2")),
        DataFrame(stream.id, b"ok"),
        RstStreamFrame(stream.id, error_code=ErrorCodes.INTERNAL_ERROR),
    )
    assert stream.take() == b"ok"
    with pytest.raises(httpcore.RemoteProtocolError, match="INTERNAL_ERROR"):
        stream.take()


def test_nothing_is_sent_on_a_stream_that_the_server_has_reset() -> None:
    """Its error is the server's, not that of a frame too many."""
    peers = Peers()
    stream = peers.begin("POST", headers=UPLOAD)
    peers.frames(RstStreamFrame(stream.id, error_code=ErrorCodes.REFUSED_STREAM))
    assert peers.protocol.window(stream) == 0
    assert peers.protocol.send(stream, memoryview(b"body")) == b"body"


def test_what_comes_for_a_stream_that_is_gone_is_nobody_s() -> None:
    """It was on its way when the request was given up."""
    peers = Peers()
    stream = peers.begin()
    peers.protocol.finish(stream)
    head = peers.head(stream, (":status", "200"))
    assert peers.frames(head, DataFrame(stream.id, b"late")) == []
    assert stream.chunks == type(stream.chunks)()


def test_a_stream_that_sleeps_can_be_woken() -> None:
    """Whoever takes in its news sets its event, if it has one."""
    stream = Peers().begin()
    stream.wake()
    woken: list[bool] = []
    stream.event = SimpleNamespace(set=lambda: woken.append(True), wait=None)  # type: ignore[assignment]
    stream.wake()
    assert woken == [True]


def test_a_stream_s_timeouts_are_its_request_s() -> None:
    """By phase, none where the request has none; a deadline that has passed is no time."""
    stream = Peers().begin()
    assert stream.timeout("read") is None
    assert stream.has_time("read")
    stream.request.extensions["timeout"] = {"read": 0.5, "write": 0.0}
    assert [stream.timeout(phase) for phase in ("read", "write", "pool")] == [0.5, 0.0, None]
    assert [stream.has_time(phase) for phase in ("read", "write", "pool")] == [True, False, True]


# --- the end of a connection ------------------------------------------------------------------


def test_streams_above_goaway_are_not_processed() -> None:
    """Those up to its last id are answered; no new ones begin."""
    peers = Peers()
    first, *others = peers.begin(), *(peers.begin("POST", headers=UPLOAD) for _ in range(2))
    others[0].body_started = True
    assert peers.frames(GoAwayFrame(0, last_stream_id=first.id)) == others
    assert peers.protocol.capacity == 0
    for stream in others:
        with pytest.raises(NotProcessed) as caught:
            stream.take()
        assert str(caught.value) == (
            "not processed: the server retired the connection after GOAWAY: NO_ERROR"
        )
        assert caught.value.body_started is (stream is others[0])
    peers.frames(peers.head(first, (":status", "200"), end=True))
    assert first.ended


@pytest.mark.parametrize("code", [1, 2, 6, 9, 11, 12, 2**32 - 902])
def test_a_goaway_with_an_error_is_the_end(code: int) -> None:
    """Nothing more is answered (RFC 9113 section 5.4.1); what is above the last id may be sent."""
    peers = Peers()
    first, second = peers.begin(), peers.begin()
    frame = GoAwayFrame(0, last_stream_id=first.id, error_code=code)
    assert peers.frames(frame) == [first, second]
    with pytest.raises(httpcore.RemoteProtocolError, match="Server disconnected after GOAWAY"):
        first.take()
    with pytest.raises(NotProcessed):
        second.take()


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize(("code", "refuses"), [(1, False), (2, False), (6, True), (9, True)])
def test_a_goaway_with_an_error_for_the_only_request(last: int, code: int, refuses: bool) -> None:
    """The reason is the request itself, for the errors that servers have for large headers."""
    peers = Peers()
    stream = peers.begin()
    assert peers.frames(GoAwayFrame(0, last_stream_id=last, error_code=code)) == [stream]
    with pytest.raises(httpcore.RemoteProtocolError, match="GOAWAY: ") as caught:
        stream.take()
    assert str(caught.value).startswith("the server refuses the request") == refuses
    assert isinstance(caught.value, NotProcessed) == (last == 0 and not refuses)


def test_a_goaway_that_includes_all_fails_nobody() -> None:
    """The first of two, as nginx and Envoy send them; the second one parts the streams."""
    peers = Peers()
    first, second = peers.begin(), peers.begin()
    assert peers.frames(GoAwayFrame(0, last_stream_id=2**31 - 1)) == []
    assert peers.frames(GoAwayFrame(0, last_stream_id=first.id)) == [second]


@pytest.mark.parametrize("goaway", [False, True])
def test_the_end_of_a_connection_says_why(goaway: bool) -> None:
    """With the reason that GOAWAY has given, if there was one."""
    peers = Peers()
    if goaway:
        peers.frames(GoAwayFrame(0, last_stream_id=1, error_code=0x77))
    text = "Server disconnected" + (" after GOAWAY: 119" if goaway else "")
    with pytest.raises(httpcore.RemoteProtocolError, match=f"^{text}$"):
        peers.protocol.receive(b"")


@pytest.mark.parametrize(
    ("cause", "kind", "text"),
    [
        (httpcore.ReadError("reset"), httpcore.ReadError, "reset"),
        (httpcore.RemoteProtocolError("gone"), httpcore.RemoteProtocolError, "gone"),
        (KeyError(7), httpcore.RemoteProtocolError, "KeyError: 7"),
    ],
)
def test_a_connection_that_fails_fails_all(
    cause: Exception, kind: type[Exception], text: str
) -> None:
    """Each with an exception of its own, of httpcore's kind; the first cause is the one."""
    peers = Peers()
    streams = [peers.begin(), peers.begin(), peers.begin()]
    peers.respond(streams[0], end=True)
    assert peers.protocol.fail_connection(cause) == streams
    assert streams[0].error is None
    assert [type(stream.error) for stream in streams[1:]] == [kind] * 2
    assert [str(stream.error) for stream in streams[1:]] == [text] * 2
    assert streams[1].error is not streams[2].error
    error = peers.protocol.error
    peers.protocol.fail_connection(ValueError("later"))
    assert peers.protocol.error is error
    assert peers.protocol.capacity == 0


@pytest.mark.parametrize(
    ("heard_ago", "retired"), [(0.0, False), (0.4, False), (0.5, True), (5.0, True)]
)
def test_a_timeout_on_a_silent_connection_retires_it(
    monkeypatch: pytest.MonkeyPatch, heard_ago: float, retired: bool
) -> None:
    """Silent is one that said nothing in the latter half of the wait."""
    peers = Peers()
    stream = peers.begin()
    heard = peers.protocol.heard
    monkeypatch.setattr(_http2_protocol, "monotonic", lambda: heard + heard_ago)
    peers.protocol.fail_timed_out(stream, "read", 1.0)
    assert isinstance(stream.error, httpcore.ReadTimeout)
    assert peers.protocol.retired is retired


def test_a_timeout_names_what_was_waited_for() -> None:
    """Reading, or writing; one that has ended meanwhile stays as it is."""
    peers = Peers()
    stream, ended = peers.begin(), peers.begin()
    peers.respond(ended, end=True)
    for one in (stream, ended):
        peers.protocol.fail_timed_out(one, "write", 1.0)
    assert isinstance(stream.error, httpcore.WriteTimeout)
    assert ended.error is None


# --- finishing --------------------------------------------------------------------------------


def test_a_stream_that_is_given_up_is_reset() -> None:
    """The server need not work for nobody; who reads it gets an error."""
    peers = Peers()
    stream = peers.begin()
    peers.protocol.finish(stream)
    peers.deliver()
    assert peers.resets() == [(stream.id, ErrorCodes.CANCEL)]
    with pytest.raises(httpcore.ReadError, match="closed"):
        stream.take()


@pytest.mark.parametrize("upload", [False, True])
def test_a_stream_that_has_ended_is_not_reset(upload: bool) -> None:
    """Unless the upload was still going on."""
    peers = Peers()
    stream = peers.begin("POST", headers=UPLOAD) if upload else peers.begin()
    peers.respond(stream, end=True)
    peers.protocol.finish(stream)
    peers.deliver()
    assert peers.resets() == ([(stream.id, ErrorCodes.CANCEL)] if upload else [])
    assert stream.error is None


def test_nothing_is_said_about_what_the_server_does_not_know() -> None:
    """A stream above GOAWAY's last, one that it has reset itself, and a connection that is gone."""
    peers = Peers()
    known, reset, above = peers.begin(), peers.begin(), peers.begin()
    peers.frames(RstStreamFrame(reset.id, error_code=2), GoAwayFrame(0, last_stream_id=reset.id))
    for stream in (reset, above):
        peers.protocol.finish(stream)
    peers.protocol.fail_connection(httpcore.ReadError("gone"))
    peers.protocol.finish(known)
    assert peers.protocol.state.data_to_send() == b""
    assert peers.protocol.streams == {}


def test_the_last_stream_that_a_goaway_includes_can_be_given_up() -> None:
    """The server is at work on it, and told that nobody wants the answer."""
    peers = Peers()
    last, above = peers.begin(), peers.begin()
    peers.frames(GoAwayFrame(0, last_stream_id=last.id))
    for stream in (above, last):
        peers.protocol.finish(stream)
    peers.deliver()
    assert peers.resets() == [(last.id, ErrorCodes.CANCEL)]


def test_the_room_of_a_stream_that_has_gone_is_there_for_others() -> None:
    """As much as its window had grown, and no more: what may lie unread stays bounded."""
    peers = Peers()
    for _ in range(3):
        stream = peers.begin()
        for _ in range(20):
            peers.protocol.acknowledge(stream, stream.window // 4)
        assert stream.window == STREAM_WINDOW + SPARE_WINDOW
        peers.protocol.finish(stream)
        peers.deliver()


def test_what_was_taken_is_given_back_once() -> None:
    """Or the server could send without end what nobody reads."""
    peers = Peers()
    stream = peers.begin()
    given = 0
    for _ in range(8):
        peers.protocol.acknowledge(stream, STREAM_WINDOW // 8)
        given += STREAM_WINDOW // 8
    peers.deliver()
    grown = stream.window - STREAM_WINDOW
    assert peers.granted(stream.id) == given + grown - stream.unacknowledged


# --- windows ----------------------------------------------------------------------------------


def test_the_connection_s_window_is_opened_again_at_once() -> None:
    """Who reads nothing uses up the stream's window, not everybody's; in batches of 4 MiB."""
    peers = Peers()
    received, streams = 0, [peers.begin() for _ in range(80)]
    for stream in streams:
        peers.respond(stream)
        for _ in range(8):
            peers.send(stream, bytes(16384))
            received += 16384
        assert peers.granted(stream.id) == 0
    assert peers.granted(0) - MOST_UNREAD == received // (MOST_UNREAD // 8) * (MOST_UNREAD // 8)


def test_padding_and_the_data_of_malformed_bodies_count() -> None:
    """They use the connection's window up, and give it back."""
    peers = Peers()
    padded, malformed, gone = peers.begin(), peers.begin(), peers.begin()
    peers.respond(padded)
    peers.send(padded, b"x", padding=100)
    assert padded.unacknowledged == 101
    peers.protocol.finish(gone)
    head = peers.head(malformed, (":status", "200"), ("content-length", "1"))
    peers.frames(head, DataFrame(malformed.id, b"four"))
    assert peers.protocol._unacknowledged == 102 + 4
    peers.protocol.finish(malformed)
    frame = SimpleNamespace(stream_id=malformed.id, data=b"x", flow_controlled_length=1)
    peers.protocol.state.malformed_data.append(frame)
    peers.frames(RstStreamFrame(gone.id, error_code=0))
    assert peers.protocol._unacknowledged == 102 + 4 + 1


def test_padding_opens_the_window_again_and_does_not_widen_it() -> None:
    """A body that is nearly all padding uses it up, though its reader takes next to nothing."""
    peers = Peers()
    stream = peers.begin()
    peers.respond(stream)
    times = STREAM_WINDOW // 4 // 256 + 1
    for _ in range(times):
        peers.send(stream, b"x", padding=255)
    assert peers.granted(stream.id) == times * 256 - stream.unacknowledged > 0
    assert stream.window == STREAM_WINDOW


def test_the_window_doubles_for_a_reader_that_keeps_up() -> None:
    """After each quarter that was taken, until what all may have in addition is used up."""
    peers = Peers()
    stream = peers.begin()
    peers.protocol.acknowledge(stream, STREAM_WINDOW // 4 - 1)
    peers.deliver()
    assert (stream.window, peers.granted(stream.id)) == (STREAM_WINDOW, 0)
    peers.protocol.acknowledge(stream, 1)
    peers.deliver()
    assert stream.window == 2 * STREAM_WINDOW
    assert peers.granted(stream.id) == STREAM_WINDOW // 4 + STREAM_WINDOW
    for _ in range(20):
        peers.protocol.acknowledge(stream, stream.window // 4)
    assert stream.window == STREAM_WINDOW + SPARE_WINDOW
    other = peers.begin()
    peers.protocol.acknowledge(other, STREAM_WINDOW)
    peers.deliver()
    assert (other.window, peers.granted(other.id)) == (STREAM_WINDOW, STREAM_WINDOW)
    peers.protocol.finish(stream)
    peers.protocol.acknowledge(other, STREAM_WINDOW)
    assert other.window == 2 * STREAM_WINDOW


def test_the_window_of_a_stream_that_has_ended_stays() -> None:
    """The server has nothing more to send on it."""
    peers = Peers()
    stream = peers.begin()
    peers.respond(stream)
    peers.send(stream, bytes(16384) * 1, end=True)
    peers.protocol.acknowledge(stream, STREAM_WINDOW)
    peers.deliver()
    assert peers.granted(stream.id) == 0


def test_news_of_the_windows_concerns_those_who_may_wait_for_them() -> None:
    """The connection's and SETTINGS concern all streams; a stream's own that one alone."""
    peers = Peers()
    streams = [peers.begin(), peers.begin()]
    for change, concerned in (
        (lambda: peers.server.increment_flow_control_window(9), streams),
        (lambda: peers.server.increment_flow_control_window(9, streams[1].id), streams[1:]),
        (lambda: peers.server.update_settings({CODES.MAX_CONCURRENT_STREAMS: 5}), streams),
        (lambda: peers.server.ping(b"12345678"), []),
    ):
        change()
        assert list(peers.protocol.receive(peers.server.data_to_send())) == concerned
    assert peers.protocol.capacity == 5


@pytest.mark.parametrize("size", [8, 9, 500])
def test_half_a_frame_keeps_its_own_stream_s_wait_alive(size: int) -> None:
    """As over HTTP/1.1, where each byte does; its head, of 9, says whose it is."""
    peers = Peers()
    one, other = peers.begin(), peers.begin()
    began = peers.protocol.heard
    peers.protocol.receive(DataFrame(one.id, bytes(1000)).serialize()[:size])
    assert (peers.protocol.heard_for(one)() > began) is (size >= 9)
    assert peers.protocol.heard_for(other)() <= began
