"""The examples: each runs offline, alone, without a warning, and prints what it promises."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# What a reader looks for in the output of each.
KEY_LINES = {
    "quickstart.py": [
        r"GET /twice-503 +1 +503 Service Unavailable +wait (0\.[89]\d|1\.00) s",
        r"GET /twice-503 +2 +503 Service Unavailable +wait (1\.[6-9]\d|2\.00) s",
        r"GET /twice-503 +3 +200 OK +done",
        r"GET /busy +1 +429 Too Many Requests +wait 1\.00 s, as Retry-After asks",
        r"GET /dropped +1 +RemoteProtocolError +wait",
        r"GET /dropped +2 +200 OK +done",
        r"POST /orders +1 +503 Service Unavailable +returned: a POST is sent once",
        r"GET /still-down +3 +503 Service Unavailable +returned: no attempts left",
        r"GET /gone +3 +RemoteProtocolError +raised: no attempts left",
        r"  gave up on GET http://127\.0\.0\.1:\d+/gone after 3 attempts in 0\.\d s:",
        r"AsyncProductionHTTPClient, all calls at once",
    ],
    "api_client.py": [
        r"async with: +/things/spoon /things/fork",
        r"close\(\): +/things/knife",
        r"forgotten close\(\): ResourceWarning: unclosed ThingsAPI",
    ],
    "many_requests.py": [
        r"in the middle +PoolStats\(connections=50, .*waiting=\d+\)",
        r"retries +100\n +connections +\d+ opened",
        r"30 threads, one ProductionHTTPClient",
        r"requests +300, all answered",
    ],
    "per_request_policy.py": [
        r"max_attempts=1 +GET /health +1 .*503",
        r"methods with POST +POST /search +2 .*200",
        r"an Idempotency-Key +POST /orders +2 .*201",
        r"should_retry +GET /reports/7 +3 .*200",
        r"total_timeout=1.0 +GET /slow-lane +1 +0\.0\d +503",
    ],
    "resume_download.py": [
        r"a file that stays: 200 MB in .*, the hash is right: True",
        r"parts began at 0, 70, 150 MB; the server sent 200 MB in all",
        r"a file that changes: 200 MB in .*, the hash is right: True",
        r"parts began at 0, 0, 150 MB; the server sent 270 MB in all",
    ],
    "webhooks.py": [
        r"shipped +delivered, attempts: 3",
        r"returned +kept for later \(503\)\n",
        r"in the outbox: \['returned'\]\nreturned +delivered, attempts: 2",
        r"13 requests arrived for 5 events, each acted on once",
    ],
    "retry_metrics.py": [
        r"503 Service Unavailable +2 +0\.\d\d s",
        r"429 Too Many Requests +1 +1\.00 s",
        r"RemoteProtocolError +1 +",
        r"gave up after 4 attempts +1",
        r"32 attempts for 24 calls: 1\.33 each",
    ],
}

# The same of those that need other packages: tests/ecosystem/test_examples_with_packages.py.
WITH_PACKAGES = {
    "downloader.py": [
        r"60 files, 4\.8 MB, all bytes right: True",
        r"77 requests, 14 of them a second or third attempt",
    ],
    "gunicorn_workers.py": [
        r"200 requests, answered by [23] workers forked from one process",
        r"warmed up 1 time, before the fork; wrong answers: 0",
    ],
    "web_app.py": [
        r"100 requests at once, each answered within .*: \{200: 100\}",
        r"/report: 504",
        r'http_client_pool\{is="connections"\} \d+',
        r'http_client_retries_total\{host="127.0.0.1",reason="RemoteProtocolError"\} 10',
    ],
}

# Runs a script as `python script` does, with every way out of this machine closed.
OFFLINE = """
import runpy, sys

def refuse(event, args):
    if event == "socket.connect":
        host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if host != "127.0.0.1":
        raise RuntimeError(f"{event} {host!r}: an example is not offline")

sys.addaudithook(refuse)
sys.path[0] = sys.argv[1]
runpy.run_path(f"{sys.argv[1]}/{sys.argv[2]}", run_name="__main__")
"""


def start(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", OFFLINE, str(EXAMPLES), name]
    proxies = {"HTTP_PROXY": "http://192.0.2.1:9", "ALL_PROXY": "http://192.0.2.1:9"}
    return subprocess.Popen(
        command,
        env={"PATH": "", "PYTHONUNBUFFERED": "1", **proxies},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All of them at once: they wait most of their time."""
    processes = {name: start(name) for name in KEY_LINES}
    yield processes
    for process in processes.values():
        with process:
            process.kill()


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("name", sorted(KEY_LINES))
def test_example_runs_offline_and_prints_its_key_lines(
    running: dict[str, subprocess.Popen[str]], name: str
) -> None:
    """An example exits with 0, without warnings or tracebacks, whatever proxy is set."""
    check(running[name], KEY_LINES[name])


def check(process: subprocess.Popen[str], key_lines: list[str]) -> None:
    """It ends well within the test's time, and has printed these."""
    output, errors = process.communicate(timeout=55)
    assert process.returncode == 0, errors
    assert not re.search(r"Warning|Traceback|Exception ignored", errors), errors
    for line in key_lines:
        assert re.search(line, output), f"{line!r} not in:\n{output}"


def test_every_example_is_tried() -> None:
    """A new example needs key lines here; the fleet's simulation has a test file of its own."""
    others = {"flaky_server.py", "fleet_simulation.py"}
    tried = KEY_LINES.keys() | WITH_PACKAGES.keys() | others
    assert {path.name for path in EXAMPLES.glob("*.py")} == tried


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_stands_alone(path: Path) -> None:
    """A reader may copy the examples: nothing of the tests, nothing private of the library."""
    text = path.read_text()
    assert not re.search(r"^\s*(from|import) (tests|conftest|servers)\b", text, re.MULTILINE)
    assert not re.search(r"httpx_production\._|import _", text)
