"""OpenTelemetry and Sentry see one span for each attempt, and can number them."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sentry_sdk
from conftest import FakeClock, Flavour
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor, RequestInfo
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span
from sentry_sdk.integrations.httpx import HttpxIntegration
from servers import ScriptedServer, answer, forward, reset

pytestmark = pytest.mark.anyio

STATUS, RESENDS = "http.status_code", "http.request.resend_count"


# --- OpenTelemetry --------------------------------------------------------------------------------


class Spans(TracerProvider):
    """Keeps the spans that ended."""

    def __init__(self) -> None:
        super().__init__()
        self._exporter = InMemorySpanExporter()
        self.add_span_processor(SimpleSpanProcessor(self._exporter))

    def values(self, name: str) -> list[Any]:
        """An attribute of each span, in order."""
        spans: tuple[ReadableSpan, ...] = self._exporter.get_finished_spans()
        return [(span.attributes or {}).get(name) for span in spans]


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.shutdown()


def number(span: Span, request: RequestInfo) -> None:
    """The request hook that our cookbook recommends."""
    attempt = (request.extensions or {}).get("attempt", 0)
    if attempt:
        span.set_attribute(RESENDS, attempt)


def hook(flavour: Flavour) -> Any:
    return flavour.hook(number)


async def test_an_instrumented_client_has_a_span_per_attempt(
    flavour: Flavour, clock: FakeClock, spans: Spans
) -> None:
    """instrument_client sees the 503, the reset and the 200, numbered by resend_count."""
    with ScriptedServer([answer(503), reset(), answer()]) as server:
        client = flavour.client()
        HTTPXClientInstrumentor.instrument_client(
            client, tracer_provider=spans, request_hook=hook(flavour)
        )
        await flavour.run(client.get(server.url))
        assert all("traceparent" in request.headers for request in server.requests)
    assert spans.values(STATUS) == [503, None, 200]
    assert spans.values(RESENDS) == [None, 1, 2]


async def test_mounts_are_instrumented_too(
    flavour: Flavour, clock: FakeClock, spans: Spans
) -> None:
    """Behind a proxy there is a span per attempt as well."""
    with ScriptedServer([answer(503)]) as server, ScriptedServer(forward) as proxy:
        client = flavour.client(proxy=proxy.url)
        HTTPXClientInstrumentor.instrument_client(
            client, tracer_provider=spans, request_hook=hook(flavour)
        )
        await flavour.run(client.get(server.url))
    assert spans.values(STATUS) == [503, 200]
    assert spans.values(RESENDS) == [None, 1]


async def test_global_instrumentation_covers_our_clients(
    flavour: Flavour, clock: FakeClock, spans: Spans
) -> None:
    """instrument() patches httpx's transports: ours are httpx's."""
    name = "request_hook" if flavour.sync else "async_request_hook"
    HTTPXClientInstrumentor().instrument(tracer_provider=spans, **{name: hook(flavour)})
    try:
        with ScriptedServer([answer(503)]) as server:
            await flavour.run(flavour.client().get(server.url))
    finally:
        HTTPXClientInstrumentor().uninstrument()
    assert spans.values(STATUS) == [503, 200]
    assert spans.values(RESENDS) == [None, 1]


# --- Sentry ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transactions() -> Iterator[list[Any]]:
    """Sentry with its httpx integration, which replaces `send` on httpx's classes for good."""
    originals = [(kind, kind.send) for kind in (httpx.Client, httpx.AsyncClient)]
    transactions: list[Any] = []

    def keep(event: Any, hint: Any) -> None:
        transactions.append(event)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[HttpxIntegration()],
        traces_sample_rate=1.0,
        before_send_transaction=keep,
    )
    yield transactions
    sentry_sdk.get_client().close()
    sentry_sdk.init()
    for kind, send in originals:
        kind.send = send  # type: ignore[method-assign]


async def test_sentry_has_a_span_per_attempt(
    flavour: Flavour, clock: FakeClock, transactions: list[Any]
) -> None:
    """The integration wraps httpx's own send(), which each attempt of ours goes through."""
    with ScriptedServer([answer(503)]) as server:
        client = flavour.client()
        with sentry_sdk.start_transaction(name=flavour.name):
            response = await flavour.run(client.get(server.url))
        assert response.text == "ok"
        assert all("sentry-trace" in request.headers for request in server.requests)
    event = transactions[-1]
    assert event["transaction"] == flavour.name
    spans = event["spans"]
    assert [span["op"] for span in spans] == ["http.client"] * 2
    assert [span["data"]["http.response.status_code"] for span in spans] == [503, 200]
