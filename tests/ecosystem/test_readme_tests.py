"""The documents' blocks that need other packages: each runs as it stands there."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import FakeClock
from documents import COOKBOOK, DOCUMENTS, README
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import Received, ScriptedServer, Step, answer

from httpx_production import ProductionHTTPClient

BLOCKS = [block for document in DOCUMENTS for block in document.blocks("ecosystem")]
TESTS = [block for block in BLOCKS if "def test_" in block]
(CONFTEST,) = (block for block in README.blocks() if "pytest.fixture" in block)


def block(words: str) -> dict[str, Any]:
    """What the one block defines that has these words."""
    (text,) = (one for one in BLOCKS if words in one)
    scope: dict[str, Any] = {"__name__": "cookbook"}
    exec(compile(text, "a block of the cookbook", "exec"), scope)
    return scope


# --- tests, run as a reader's own -----------------------------------------------------------------


def run(folder: Path, *tests: str) -> str:
    """Run files of tests; what pytest says of them."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for number, text in enumerate(tests):
        (folder / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=15
    )
    return done.stdout + done.stderr


def test_the_conftest_is_the_same_in_both() -> None:
    """README and cookbook, but for an empty line."""
    (other,) = (one for one in COOKBOOK.blocks() if "pytest.fixture" in one)
    assert other.split() == CONFTEST.split()


def test_the_cookbook_s_tests_pass(tmp_path: Path) -> None:
    """Both, without a wait: pytest tells how long it took."""
    assert len(TESTS) == 2
    said = run(tmp_path, *TESTS)
    assert re.search(r"^2 passed.* in [0-4]\.\d\ds", said, re.MULTILINE), said


@pytest.mark.parametrize("left", [0, 1])
def test_too_few_answers_fail_at_once(tmp_path: Path, left: int) -> None:
    """With the message that says so, and not after all attempts and 14 s."""
    (text,) = (one for one in TESTS if "httpx_mock" in one)
    lines = text.splitlines(keepends=True)
    answers = [line for line in lines if "add_response" in line]
    said = run(tmp_path, "".join(one for one in lines if one not in answers[left:]))
    assert "No response can be found for GET request on https://api.example.com/things" in said
    assert re.search(r"^1 failed.* in [0-4]\.\d\ds", said, re.MULTILINE), said


# --- the others, executed and used ----------------------------------------------------------------


def test_an_sdk_takes_a_client_with_its_timeouts_and_retries(clock: FakeClock) -> None:
    """A completion that is throttled once is asked for again, by one layer."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "hi"},
    }
    whole = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }
    done = answer(200, json.dumps(whole).encode(), {"Content-Type": "application/json"})
    scope = block("groq.Groq(")
    with scope["slow"], ScriptedServer([answer(429), done]) as server:
        sdk = scope["sdk"].with_options(base_url=server.url)
        ask = [{"role": "user", "content": "hello"}]
        said = sdk.chat.completions.create(model="m", messages=ask)
        assert said.choices[0].message.content == "hi"
        assert (sdk.timeout.read, sdk.timeout.pool, server.methods) == (120, None, ["POST"] * 2)


def test_structlog_writes_the_fields_as_json(
    clock: FakeClock, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each record."""
    logger = logging.getLogger("httpx_production")
    scope = block("structlog.stdlib")
    try:
        transport = httpx.MockTransport(lambda request: httpx.Response(503))
        with caplog.at_level(logging.INFO), ProductionHTTPClient(transport=transport) as client:
            client.get("https://api.example.com/things?secret")
    finally:
        logger.removeHandler(scope["handler"])
    first, *_, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], last["level"]) == ("info", "warning")
    assert first["http_url"] == "https://api.example.com/things"
    assert (first["attempt"], first["reason"]) == (0, "503 Service Unavailable")


def test_opentelemetry_s_spans_are_numbered(clock: FakeClock) -> None:
    """Each re-send has its number, the first request none."""
    scope, exporter = block("HTTPXClientInstrumentor"), InMemorySpanExporter()
    spans = TracerProvider()
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    with scope["client"], ProductionHTTPClient(trust_env=False) as client:
        HTTPXClientInstrumentor.instrument_client(
            client, tracer_provider=spans, request_hook=scope["number"]
        )
        with ScriptedServer([answer(503)] * 2) as server:
            client.get(server.url)
    numbers = [(span.attributes or {}).get(RESENDS) for span in exporter.get_finished_spans()]
    assert numbers == [None, 1, 2]
    spans.shutdown()


RESENDS = "http.request.resend_count"

SETTINGS = """
import os

folders = dict.fromkeys(["data_folder_in", "data_folder_out", "control_folder"], "queue")
tasks.conf.update(broker_url="filesystem://", broker_transport_options=folders)
tasks.conf.update(result_backend="file://results")
SERVICE = os.environ["SERVICE_URL"]
"""
WARM_UP = """
http.get(SERVICE + "/warm-up")  # leaves an open connection, before the processes are forked
"""
PRODUCER = """
pending = [fetch.delay(f"{SERVICE}/things/{number}") for number in range(30)]
print(*[one.get(timeout=40) for one in pending])
"""


@pytest.mark.time_limit(60)
def test_one_client_serves_celery_s_forked_processes(tmp_path: Path) -> None:
    """A real worker with three of them: each task gets its own answer."""
    (text,) = (one for one in BLOCKS if "celery.Celery" in one)
    (tmp_path / "tasks.py").write_text(text + SETTINGS + WARM_UP)
    (tmp_path / "producer.py").write_text(text + SETTINGS + PRODUCER)
    for name in ("queue", "results"):
        (tmp_path / name).mkdir()

    def respond(request: Received) -> Step:
        return answer(200, request.path.encode(), delay=0.05)

    with ScriptedServer(respond) as server:
        environment = os.environ | {"SERVICE_URL": server.url, "no_proxy": "127.0.0.1"}
        worker = [sys.executable, "-m", "celery", "--app=tasks", "worker", "--concurrency=3"]
        with subprocess.Popen(
            worker, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                done = subprocess.run(
                    [sys.executable, "producer.py"],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=45,
                )
            finally:
                process.terminate()
                log, _ = process.communicate()
        assert done.stdout.split() == [f"/things/{number}" for number in range(30)], log.decode()
        assert [one.path for one in server.requests].count("/warm-up") == 1
        used = {one.connection for one in server.requests if one.path != "/warm-up"}
        (warm,) = {one.connection for one in server.requests if one.path == "/warm-up"}
    assert warm not in used
    assert len(used) >= 2
