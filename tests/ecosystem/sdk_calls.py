"""How an SDK is called with a client of ours: the same few calls for each, against a fake API."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conftest import FakeClock, Flavour
from servers import ScriptedServer, Step, answer, refused_port

JSON = {"Content-Type": "application/json"}


def said(value: Any, status: int = 200, **headers: str) -> Step:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, json.dumps(value).encode(), JSON | named)


NOT_FOUND = said({"message": "no such thing", "error": {"message": "no"}}, 404)


@dataclass(frozen=True)
class SDK:
    """One SDK: how it is made over a client of ours, a call that is a GET, and its exceptions."""

    call: Callable[[Flavour, Any, str], Callable[[], Any]]  # of a flavour, our client and an URL
    result: Any  # JSON that its API answers with
    of_404: type[Exception]
    of_503: type[Exception]
    unreachable: type[Exception]
    missing: Step = NOT_FOUND


async def is_retried(sdk: SDK, flavour: Flavour, clock: FakeClock, url: str = "") -> Any:
    """A 503 comes first, then the answer: what the SDK made of that."""
    with ScriptedServer([answer(503), said(sdk.result)]) as server:
        call = sdk.call(flavour, flavour.client(), server.url + url)
        result = await flavour.run(call())
        assert server.methods == ["GET", "GET"]
        assert len({request.target for request in server.requests}) == 1
    assert len(clock.delays) == 1
    assert 0.8 <= clock.delays[0] <= 1.0  # our wait, not the SDK's
    return result


async def keeps_its_exceptions(sdk: SDK, flavour: Flavour) -> None:
    """Refusals, exhausted attempts and dead servers arrive as the SDK's own exceptions."""
    with ScriptedServer([sdk.missing]) as server:
        outcome = await flavour.outcome(sdk.call(flavour, flavour.client(), server.url))
        assert type(outcome) is sdk.of_404
        assert len(server.requests) == 1
    with ScriptedServer(lambda request: said({"message": "busy"}, 503)) as server:
        client = flavour.client(max_attempts=2)
        outcome = await flavour.outcome(sdk.call(flavour, client, server.url))
        assert type(outcome) is sdk.of_503
        assert len(server.requests) == 2
    with refused_port() as url:
        outcome = await flavour.outcome(sdk.call(flavour, flavour.client(max_attempts=2), url))
        assert type(outcome) is sdk.unreachable
