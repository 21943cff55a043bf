"""The documents tell the truth: their code runs, their tables are the code's.

What needs other packages is tried in `tests/ecosystem/test_readme_tests.py`.
"""

import ast
import contextlib
import inspect
import logging
import re
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import anyio
import httpx
import pytest
from conftest import FakeClock, Flavour
from documents import COOKBOOK, DOCUMENTS, FIGURES, README, ROOT, Document
from servers import Received, ScriptedServer, Step, answer

import httpx_production
from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    FailedAttempt,
    ProductionHTTPClient,
    RetryPolicy,
)

EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


@contextlib.contextmanager
def offline() -> Iterator[list[httpx.Request]]:
    """Every host answers with some JSON, from memory; the requests are listed."""
    requests: list[httpx.Request] = []

    def respond(self: Any, request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"things": []})

    async def async_respond(self: Any, request: httpx.Request) -> httpx.Response:
        return respond(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.HTTPTransport, "handle_request", respond)
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", async_respond)
        yield requests


@contextlib.contextmanager
def unchanged_logging() -> Iterator[None]:
    """Put back what blocks about logging change."""
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpx_production")]
    before = [(one.level, one.handlers[:], one.filters[:]) for one in loggers]
    try:
        yield
    finally:
        for one, (level, handlers, filters) in zip(loggers, before, strict=True):
            one.setLevel(level)
            one.handlers[:], one.filters[:] = handlers, filters


def executed(document: Document) -> dict[str, Any]:
    """What its blocks define, each run alone: a reader copies one."""
    defined: dict[str, Any] = {}
    with offline() as requests, unchanged_logging():
        for number, block in enumerate(document.blocks()):
            scope: dict[str, Any] = {"__name__": "readme"}
            exec(compile(block, f"{document.name}, block {number}", "exec"), scope)
            defined |= scope
    assert {request.url.host for request in requests} <= {"api.example.com"}
    return defined


# --- blocks of code -------------------------------------------------------------------------------


@pytest.mark.parametrize(("document", "at_least"), [(README, 5), (COOKBOOK, 8), (FIGURES, 0)])
def test_every_block_of_code_runs(document: Document, at_least: int) -> None:
    """Alone, against a world that answers; none asks anybody but the host that doesn't exist."""
    executed(document)
    assert len(document.blocks()) >= at_least
    count = sum(len(document.blocks(mark)) for mark in ("", "ecosystem", "httpx2"))
    assert count == document.text.count("```python")


def test_the_async_block_returns_what_the_server_said() -> None:
    """Its function is for an event loop of the reader's."""
    things = executed(README)["things"]
    with offline():
        assert anyio.run(things) == {"things": []}


def test_the_recipes_for_should_retry_decide_as_they_say() -> None:
    """Each recipe is asked for what it is about, and for what it leaves alone."""
    scope = executed(COOKBOOK)
    post, get = httpx.Request("POST", "https://a.b/"), httpx.Request("GET", "https://a.b/")
    exhausted = httpx.Response(429, json={"error": "insufficient_quota"})
    assert scope["quota_exhausted_is_final"](get, exhausted) is False
    assert scope["quota_exhausted_is_final"](get, httpx.Response(429, json={"error": "x"})) is None
    assert scope["eventually_consistent"](get, httpx.Response(404)) is True
    assert scope["eventually_consistent"](post, httpx.Response(404)) is None


@pytest.mark.anyio
async def test_the_recipe_for_rate_limits_waits_until_the_reset(
    flavour: Flavour, clock: FakeClock
) -> None:
    """GitHub's 403 is waited for, Retry-After still read; a 403 of another kind is final."""
    policy = executed(COOKBOOK)["github"]
    limited = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{time.time() + 250:.0f}"}
    answers = [
        httpx.Response(403, headers=limited),
        httpx.Response(503, headers={"Retry-After": "7"}),
        httpx.Response(403, headers={"x-ratelimit-remaining": "3"}),
    ]
    transport = httpx.MockTransport(lambda request: answers.pop(0))
    response = await flavour.run(flavour.client(transport=transport, retry=policy).get("https://x"))
    assert (response.status_code, len(clock.delays)) == (403, 2)
    assert 200 < clock.delays[0] <= 251
    assert clock.delays[1] == 7


@pytest.mark.anyio
async def test_the_recipe_for_tokens_refreshes_them(flavour: Flavour, clock: FakeClock) -> None:
    """Fetched once, again after a 401, and kept over a retry."""
    tokens = iter(["old", "new"])

    def respond(request: Received) -> Step:
        if request.path == "/token":
            return answer(200, b'{"access_token": "%s"}' % next(tokens).encode())
        if request.headers["Authorization"] == "Bearer old":
            return answer(401)
        return answer(503) if len(server.requests) < 5 else answer(200)

    with ScriptedServer(respond) as server:
        auth = executed(COOKBOOK)["Refreshing"](f"{server.url}/token", "secret")
        response = await flavour.run(flavour.client(auth=auth).get(f"{server.url}/things"))
        paths = [request.path for request in server.requests]
    assert response.status_code == 200
    assert paths == ["/token", "/things", "/token", "/things", "/things"]
    assert (server.methods[0], server.methods[2]) == ("POST", "POST")


def test_the_filter_takes_a_token_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Out of the text and out of the field; what else there is stays."""
    hide = executed(COOKBOOK)["HideBotToken"]()
    logger, transport = logging.getLogger("httpx_production"), httpx.MockTransport(unavailable)
    logger.addFilter(hide)
    try:
        with caplog.at_level(logging.INFO), ProductionHTTPClient(transport=transport) as client:
            client.post("https://api.example.com/bot123:secret/send")
    finally:
        logger.removeFilter(hide)
    (record,) = (one for one in caplog.records if one.name == "httpx_production")
    assert "POST https://api.example.com/bot***/send" in record.getMessage()
    assert record.http_url == "https://api.example.com/bot***/send"  # type: ignore[attr-defined]


def unavailable(request: httpx.Request) -> httpx.Response:
    return httpx.Response(503)


# --- tables that mirror code ----------------------------------------------------------------------


def test_what_is_retried_is_what_the_tables_hold() -> None:
    """Statuses with their meanings, and exceptions."""
    said = README.text.split("## What is retried")[1].split("\n## ")[0]
    statuses = re.search(r"RETRIABLE_STATUS_CODES.*", said)
    exceptions = re.search(r"HTTPX_EXCEPTIONS`\), subclasses included: ([\w, ]+)\.", said)
    assert statuses
    assert exceptions
    named = re.findall(r"\b(\d{3}) ((?:[A-Z]\w+ ?)+)", statuses[0])
    assert {int(code): meaning for code, meaning in named} == RETRIABLE_STATUS_CODES
    names = {kind.__name__ for kind in HTTPX_EXCEPTIONS}  # in any order: the table is live
    assert set(exceptions[1].split(", ")) == names


def test_the_constructor_s_reference_is_complete() -> None:
    """Each argument and default of the signature stands in one row of the table."""
    section = README.text.split("## Arguments")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", section, re.M)
    documented: dict[str, str] = {}
    for names, defaults in rows:
        found, values = re.findall(r"`(\w+)`", names), defaults.split()
        documented |= dict(zip(found, values, strict=True))
    assert documented == {name: str(value) for name, value in arguments().items()}


def arguments() -> dict[str, Any]:
    """The constructor's arguments and defaults."""
    parameters = inspect.signature(ProductionHTTPClient.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def test_the_policy_s_reference_is_complete() -> None:
    """Each field in the class's order, with its default where a word says it."""
    documented: list[tuple[str, str]] = []
    for names, defaults, _ in README.table("policy")[1:]:
        found = re.findall(r"`(\w+)`", names)
        documented += zip(found, defaults.split() or [""] * len(found), strict=True)
    actual = {field.name: field.default for field in fields(RetryPolicy)}
    assert [name for name, _ in documented] == list(actual)
    for name, default in documented:
        value = actual[name]
        assert default in ("", getattr(value, "__name__", str(value)))


def test_the_first_table_tells_both_defaults() -> None:
    """httpx's and ours: timeouts and limits."""
    phases = ("connect", "read", "write", "pool")
    with httpx.Client() as plain:
        theirs = " / ".join(f"{getattr(plain.timeout, one):g}" for one in phases)
    expiry = httpx.Limits().keepalive_expiry
    ours = defaults(f"{one}_timeout" for one in phases)
    pool = defaults(["max_connections", "max_keepalive_connections", "keepalive_expiry"])
    assert f"| {theirs} s | {ours} s |" in README.text
    assert f"| 100 / 20 / {expiry:g} s | {pool} s |" in README.text


def defaults(names: Iterable[str]) -> str:
    """Ours, as the table writes them."""
    return " / ".join(f"{float(arguments()[name]):g}" for name in names)


def test_the_worst_case_is_the_sum_of_the_defaults() -> None:
    """One attempt that gets no answer, and five of them with the longest waits."""
    phases = [float(arguments()[f"{one}_timeout"]) for one in ("pool", "connect", "write", "read")]
    attempt, attempts = sum(phases), int(arguments()["max_attempts"])
    assert f"{' + '.join(f'{one:g}' for one in phases)} = {attempt:g} s" in README.text
    waits = sum(2**number for number in range(attempts - 1))
    assert f"12 to {waits} s of waits | {attempts * attempt + waits:g} s |" in README.text
    longest = RetryPolicy().max_retry_after
    assert f"Retry-After, before each of four attempts | {longest:g} s |" in README.text


# --- figures --------------------------------------------------------------------------------------


def source(name: str) -> str:
    return (ROOT / "tests" / "benchmarks" / name).read_text()


def contenders() -> list[str]:
    """The names in the comparison's head, in order, without importing what may be missing."""
    text = source("contenders.py")
    names = dict(re.findall(r'^([A-Z_0-9]+) = Contender\(\s*"([^"]+)"', text, re.M))
    listed = text.split("\nALL = [")[1].split("\n]")[0]
    return [names[one] for one in re.findall(r"^    (?:\*\(\[)?([A-Z_0-9]+)", listed, re.M)]


def test_the_comparison_is_its_command_s_table() -> None:
    """Column for column and row for row."""
    head, *rows = FIGURES.table("comparison")
    labels = [
        key.value
        for node in ast.parse(source("compare.py")).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    ]
    assert [name for name in head if name] == contenders()
    assert [row[0] for row in rows] == labels
    assert {len(row) for row in rows} == {len(head)}


def test_the_costs_are_of_the_contenders() -> None:
    """Each column is one that the command knows."""
    head, *rows = FIGURES.table("costs")
    assert all(f'"{name}"' in source("contenders.py") for name in head if name)
    assert {len(row) for row in rows} == {len(head)}


# --- what the texts promise -----------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    """Five minutes; what is longer stands in the two others."""
    assert len(README.text.splitlines()) <= 200
    assert len(README.text.split()) <= 2000


def test_what_is_exported_is_mentioned() -> None:
    """No public name that the documents keep silent about."""
    text = README.text + COOKBOOK.text
    silent = [name for name in httpx_production.__all__ if name not in text]
    assert [name for name in silent if not name.startswith("__")] == []


@EACH
def test_files_and_commands_exist(document: Document) -> None:
    """Every file that a document links, names or runs is there."""
    linked = re.findall(r"\]\((?!https?:|#)([^)]+)\)", document.text)
    run = re.findall(r"uv run (?:--\S+ (?:\w+ (?=\S))?)*([\w/]+\.(?:py|sh))", document.text)
    named = re.findall(r"`((?:examples|tests)/[\w/.]+)`", document.text)
    missing = [path for path in linked if not (document.path.parent / path).exists()]
    assert missing + [path for path in run + named if not (ROOT / path).exists()] == []


def test_the_readme_has_no_links_that_its_package_page_lacks() -> None:
    """On a package index there are no files beside it: no relative link, no picture."""
    assert re.findall(r"\]\((?!https://)[^)]*\)|<img|<a ", README.text) == []


def test_the_package_page_names_what_ci_runs() -> None:
    """The Python versions and the system of its classifiers; the README says them, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert named == (ROOT / ".python-version").read_text().split()
    systems = [one for one in project["classifiers"] if one.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    assert f"Tested on Linux with CPython {' and '.join(named)}, not on macOS" in README.text


def test_the_cookbook_lists_every_program() -> None:
    """A new one needs a row there; `flaky_server.py` is what they share."""
    programs = {path.name for path in (ROOT / "examples").glob("*.py")} - {"flaky_server.py"}
    listed = re.findall(r"^\| `(\w+\.py)` \|", COOKBOOK.text, re.M)
    assert sorted(listed) == sorted(programs)


def test_ci_runs_the_line_that_installs() -> None:
    """The README's only shell block: `.ci/run` executes it as it stands there."""
    (installation,) = re.findall(r"^```sh\n(.*?)^```", README.text, re.DOTALL | re.M)
    assert installation == "pip install .\n"
    assert "sed -n '/^```sh$/,/^```$/p' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_errors_it_quotes_are_the_real_ones() -> None:
    """Messages that stand in the text are what the code says."""
    with pytest.raises(ValueError, match="max_attempts") as caught:
        RetryPolicy(max_attempts=0)
    assert str(caught.value) in README.text

    def drop(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")

    with (
        ProductionHTTPClient(transport=httpx.MockTransport(drop)) as client,
        pytest.raises(httpx.RemoteProtocolError) as dropped,
    ):
        client.post("https://api.example.com/orders")
    quoted = re.sub(r"in [\d.]+ s:", "in 0.1 s:", dropped.value.__notes__[0])
    assert f"httpx.RemoteProtocolError: {dropped.value}\n{quoted}\n" in README.text


def test_the_hook_prints_what_is_said() -> None:
    """`print` as a retry hook: the line that the README shows, but for the wait."""
    request = httpx.Request("GET", "https://api.example.com/things")
    one = FailedAttempt(
        request=request,
        attempt=0,
        outcome=unavailable(request),
        delay=0.93,
        reason="503 Service Unavailable",
    )
    assert f"# {one}\n" in README.text


def test_the_fields_of_a_failed_attempt_are_named() -> None:
    """Where the README tells of the history."""
    told = README.text.split("tuple of `FailedAttempt`s: ")[1].splitlines()[0]
    assert sorted(re.findall(r"`(\w+)`", told)) == sorted(one.name for one in fields(FailedAttempt))
