"""What httpx2's clients have and httpx's haven't: under the alias ours have it, with retries."""

from typing import Any

import pytest
import wsproto
from conftest import FakeClock, Flavour
from servers import Connection, Received, ScriptedServer, Step, answer, message
from wsproto.connection import Connection as Frames
from wsproto.events import CloseConnection, TextMessage
from wsproto.utilities import generate_accept_token

from httpx_production import PoolStats

pytestmark = pytest.mark.anyio


async def test_server_sent_events(flavour: Flavour, clock: FakeClock) -> None:
    """The stream is asked for again until it begins."""
    events = answer(
        200, b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n", {"Content-Type": "text/event-stream"}
    )
    with ScriptedServer([answer(503), events]) as server:
        client = flavour.client()
        async with flavour.using(client.sse(server.url)) as source:
            received = list(source) if flavour.sync else [event async for event in source]
        assert [(event.id, event.data) for event in received] == [("1", "a"), ("2", "b")]
        assert len(source.response.extensions["retries"]) == len(clock.delays) == 1
        assert server.requests[1].headers["Accept"] == "text/event-stream"
        assert client.pool_stats() == PoolStats(1, 1, 0, 0)


async def test_a_websocket(flavour: Flavour, clock: FakeClock) -> None:
    """So is the upgrade; what it held is given back."""
    with ScriptedServer([answer(503), upgrade]) as server:
        client = flavour.client()
        url = server.url.replace("http", "ws", 1)
        async with flavour.using(client.websocket(url, subprotocols=["chat"])) as socket:
            await flavour.run(socket.send_text("hello"))
            assert await flavour.run(socket.receive_text(timeout=10)) == "HELLO"
            assert client.pool_stats().in_use == 1
        assert socket.response.extensions["retries"][0].outcome.status_code == 503
        assert client.pool_stats() == PoolStats(0, 0, 0, 0)


def upgrade(request: Received) -> Step:
    """101, and then whatever comes in capital letters."""
    token = generate_accept_token(request.headers["Sec-WebSocket-Key"].encode())
    headers = {
        "Upgrade": "websocket",
        "Connection": "upgrade",
        "Sec-WebSocket-Accept": token.decode(),
    }
    return Step(send=[message(101, headers=headers)], then=shout)


def shout(connection: Connection) -> None:
    frames = Frames(wsproto.ConnectionType.SERVER)
    while data := connection.sock.recv(65536):
        frames.receive_data(data)
        for event in frames.events():
            reply: Any = event.response() if isinstance(event, CloseConnection) else None
            if isinstance(event, TextMessage):
                reply = TextMessage(event.data.upper())
            if reply is not None:
                connection.sock.sendall(frames.send(reply))
