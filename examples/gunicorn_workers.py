"""One client, made before gunicorn forks its workers: each process has connections of its own.

Run it with `uv run --group examples examples/gunicorn_workers.py`. No network: the service that the
app asks is started right here, gunicorn too, with `--preload`. So the client exists, with an open
connection, when the workers are forked. With plain httpx parent and children would read each
other's answers from that connection. Celery's prefork pool forks in the same way.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flaky_server import DROP, Answer, FlakyServer

from httpx_production import ProductionHTTPClient, RetryPolicy, jittered_backoff

# A tenth of the default's waits, to save your time.
QUICK = RetryPolicy(backoff=lambda attempt: jittered_backoff(attempt) / 10)

# --- the app, a module of your own: gunicorn imports it before it forks ---------------------------

if __name__ != "__main__":
    client = ProductionHTTPClient(base_url=os.environ["SERVICE_URL"], retry=QUICK, total_timeout=10)
    client.get("/warm-up")  # leaves an open connection


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with what the service says, and with who asked it."""
    answer = client.get(environ["PATH_INFO"]).raise_for_status().json()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"asked": answer["path"], "pid": os.getpid()}).encode()]


# --- this program: the service, gunicorn, and 200 requests ----------------------------------------

NUMBER, WORKERS = 200, 3
PATHS = [f"/things/{number}" for number in range(NUMBER)]
SCRIPT: dict[str, list[Answer]] = {path: [200] for path in [*PATHS, "/warm-up"]}
SCRIPT |= {path: [(503, DROP)[number % 2], 200] for number, path in enumerate(PATHS[::10])}


@contextmanager
def gunicorn(service: str) -> Iterator[tuple[int, str]]:
    """Run the app in worker processes; yields the parent's process id, and the URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = ["--preload", f"--workers={WORKERS}", f"--bind=fd://{listener.fileno()}"]
        options += [f"--chdir={Path(__file__).parent}", "--log-level=error", "--no-control-socket"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "gunicorn_workers:app"],
            env={**os.environ, "SERVICE_URL": service},
            pass_fds=[listener.fileno()],
        )
        try:
            yield process.pid, url
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Ask the workers for many things at once; each must get its own answers."""
    with (
        FlakyServer(SCRIPT, latency=0.01) as service,
        gunicorn(service.url) as (parent, url),
        ProductionHTTPClient(base_url=url, read_timeout=30) as browser,
        ThreadPoolExecutor(10) as threads,
    ):
        answers = [response.json() for response in threads.map(browser.get, PATHS)]
        warmed_up = service.requests["GET", "/warm-up"]
    workers = Counter(answer["pid"] for answer in answers)
    wrong = [path for path, answer in zip(PATHS, answers, strict=True) if answer["asked"] != path]
    print(f"{NUMBER} requests, answered by {len(workers)} workers forked from one process")
    print(f"warmed up {warmed_up} time, before the fork; wrong answers: {len(wrong)}")
    assert not wrong, wrong
    assert 1 < len(workers) <= WORKERS
    assert parent not in workers
    assert warmed_up == 1, warmed_up


if __name__ == "__main__":
    main()
