"""SDKs that take an httpx client take ours: groq's and ollama's against a local server.

What their own retries do on top: they multiply ours. Switch off one of the two layers.
"""

import json
from typing import Any

import groq
import ollama
import pytest
from conftest import FakeClock, Flavour
from ollama._client import BaseClient
from servers import Received, ScriptedServer, Step, answer, chunked

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient, RetryPolicy

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def said(value: Any, status: int = 200) -> Step:
    return answer(status, json.dumps(value).encode(), JSON)


def completion(request: Received) -> Step:
    """An answer to a chat request, streamed where that was asked for."""
    choice = {"index": 0, "finish_reason": "stop"}
    whole: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    if not json.loads(request.body).get("stream"):
        return said(
            whole | {"choices": [choice | {"message": {"role": "assistant", "content": "hi"}}]}
        )
    events = [
        b"data: "
        + json.dumps(whole | {"choices": [choice | {"delta": {"content": text}}]}).encode()
        for text in ("h", "i")
    ]
    body = b"\n\n".join([*events, b"data: [DONE]", b""])
    return chunked(body, headers={"Content-Type": "text/event-stream"})


# --- groq -----------------------------------------------------------------------------------------


def groq_client(flavour: Flavour, server: ScriptedServer, **options: Any) -> Any:
    kind = groq.Groq if flavour.sync else groq.AsyncGroq
    http_client = flavour.client(**options.pop("http", {}))
    return kind(api_key="k", base_url=server.url, http_client=http_client, **options)


async def test_groq_takes_our_client_and_its_timeouts(flavour: Flavour) -> None:
    """It checks isinstance, and adopts our timeouts because they differ from httpx's."""
    with ScriptedServer(completion) as server:
        client = groq_client(flavour, server)
        assert (client.timeout.read, client.timeout.pool) == (10.0, 2.0)
        result = await flavour.run(client.chat.completions.create(**ASK))
        assert result.choices[0].message.content == "hi"
        assert server.requests[0].headers["Authorization"] == "Bearer k"


async def test_groq_streams_through_our_client(flavour: Flavour) -> None:
    """Server-sent events arrive piece by piece."""
    with ScriptedServer(completion) as server:
        stream = await flavour.run(
            groq_client(flavour, server).chat.completions.create(**ASK, stream=True)
        )
        if flavour.sync:
            texts = [event.choices[0].delta.content for event in stream]
        else:
            texts = [event.choices[0].delta.content async for event in stream]
    assert "".join(texts) == "hi"


@pytest.mark.parametrize(("sdk", "ours", "attempts"), [(2, 5, 15), (0, 5, 5), (2, 1, 3), (0, 1, 1)])
async def test_groqs_retries_multiply_ours(
    flavour: Flavour,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    sdk: int,
    ours: int,
    attempts: int,
) -> None:
    """A GET that fails for ever is tried (max_retries + 1) * max_attempts times."""
    monkeypatch.setattr(groq._base_client.BaseClient, "_calculate_retry_timeout", lambda *_: 0.0)
    with ScriptedServer(lambda request: answer(503)) as server:
        client = groq_client(flavour, server, max_retries=sdk, http={"max_attempts": ours})
        exc = await flavour.outcome(client.models.list)
        assert isinstance(exc, groq.InternalServerError)
        assert len(server.requests) == attempts


async def test_groqs_posts_are_retried_by_groq_or_by_policy(
    flavour: Flavour, clock: FakeClock
) -> None:
    """A POST isn't ours to repeat; with a policy that names it, it is, and the SDK's can go."""
    with ScriptedServer([answer(503), answer(429), completion]) as server:
        client = groq_client(flavour, server, max_retries=0)
        assert isinstance(
            await flavour.outcome(client.chat.completions.create, **ASK), groq.InternalServerError
        )
        assert len(server.requests) == 1
        policy = RetryPolicy(methods={"GET", "POST"})
        client = groq_client(flavour, server, max_retries=0, http={"retry": policy})
        result = await flavour.run(client.chat.completions.create(**ASK))
        assert result.choices[0].message.content == "hi"
        assert server.bodies[1] == server.bodies[2]


# --- ollama ---------------------------------------------------------------------------------------


class Ollama(ollama.Client):
    """ollama makes its client itself, of the class that its base class is given."""

    def __init__(self, host: str, **options: Any) -> None:
        BaseClient.__init__(self, ProductionHTTPClient, host, **options)


class AsyncOllama(ollama.AsyncClient):
    """The same."""

    def __init__(self, host: str, **options: Any) -> None:
        BaseClient.__init__(self, AsyncProductionHTTPClient, host, **options)


async def test_ollama_runs_on_our_client(flavour: Flavour, clock: FakeClock) -> None:
    """Its GETs are retried, its POSTs aren't, its streams and errors come through."""
    chat = {"model": "m", "message": {"role": "assistant", "content": "hi"}, "done": True}
    lines = [json.dumps(chat).encode() + b"\n"] * 2
    script = [answer(503), said({"models": []}), answer(503, b"busy"), said(chat), chunked(*lines)]
    with ScriptedServer(script) as server:
        kind = Ollama if flavour.sync else AsyncOllama
        client = flavour._keep(kind(server.url, trust_env=False)._client)
        sdk = kind(server.url, trust_env=False)
        sdk._client = client
        assert (await flavour.run(sdk.list())).models == []
        assert isinstance(await flavour.outcome(sdk.chat, **ASK), ollama.ResponseError)
        assert (await flavour.run(sdk.chat(**ASK))).message.content == "hi"
        stream = await flavour.run(sdk.chat(**ASK, stream=True))
        parts = list(stream) if flavour.sync else [part async for part in stream]
        assert [part.message.content for part in parts] == ["hi", "hi"]
        assert server.methods == ["GET", "GET", "POST", "POST", "POST"]
