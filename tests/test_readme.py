"""The README tells the truth: its code runs, its tables are the code's."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import httpx_production
from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    ProductionHTTPClient,
    RetryPolicy,
)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: Without those that need other packages: tests/ecosystem/test_readme_tests.py runs these.
BLOCKS = re.findall(
    r"(?<!<!-- ecosystem -->\n)^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE
)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Every host answers with some JSON, from memory; the requests are listed."""
    requests: list[httpx.Request] = []

    def answer(self: Any, request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"things": []})

    async def async_answer(self: Any, request: httpx.Request) -> httpx.Response:
        return answer(self, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", async_answer)
    return requests


def table(name: str) -> dict[str, str]:
    """The rows of the table between `<!-- name -->` and `<!-- end -->`."""
    _, text = README.split(f"<!-- {name} -->\n")
    rows = text.split("<!-- end -->")[0].splitlines()[2:]
    return dict(tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows)


def test_every_block_of_code_runs(offline: list[httpx.Request]) -> None:
    """All of them, one after the other, as a reader would try them."""
    scope: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number}", "exec"), scope)
    assert anyio.run(scope["things"]) == {"things": []}
    assert len(BLOCKS) >= 8
    assert {request.url.host for request in offline} == {"api.example.com"}


def test_the_recipes_for_should_retry_decide_as_they_say(offline: list[httpx.Request]) -> None:
    """Each recipe is asked for what it is about, and for what it leaves alone."""
    scope: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, scope)
    post, get = httpx.Request("POST", "https://a.b/"), httpx.Request("GET", "https://a.b/")
    exhausted = httpx.Response(429, json={"error": "insufficient_quota"})
    assert scope["quota_exhausted_is_final"](get, exhausted) is False
    assert scope["quota_exhausted_is_final"](get, httpx.Response(429, json={"error": "x"})) is None
    assert scope["eventually_consistent"](get, httpx.Response(404)) is True
    assert scope["eventually_consistent"](post, httpx.Response(404)) is None


def test_the_tables_of_what_is_retried_are_the_code_s() -> None:
    """Statuses and exceptions, with their meanings."""
    assert table("statuses") == {str(k): v for k, v in RETRIABLE_STATUS_CODES.items()}
    assert table("exceptions") == {kind.__name__: v for kind, v in HTTPX_EXCEPTIONS.items()}


def test_the_constructor_s_reference_is_complete() -> None:
    """Each argument and default of the signature stands in one row of the table."""
    section = README.split("## Constructor")[1].split("<!-- policy -->")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", section, re.M)
    documented: dict[str, str] = {}
    for names, defaults in rows:
        found, values = re.findall(r"`(\w+)`", names), defaults.split()
        documented |= dict(zip(found, values, strict=True))
    parameters = inspect.signature(ProductionHTTPClient.__init__).parameters.values()
    actual = {p.name: str(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert documented == actual


def test_the_policy_s_reference_is_complete() -> None:
    """Each field in the class's order, with its default where a word says it."""
    text = README.split("<!-- policy -->\n")[1].split("<!-- end -->")[0]
    documented: list[tuple[str, str]] = []
    for row in text.splitlines()[2:]:
        names, defaults, _ = (cell.strip() for cell in row.strip("|").split("|"))
        found = re.findall(r"`(\w+)`", names)
        documented += zip(found, defaults.split() or [""] * len(found), strict=True)
    actual = {field.name: field.default for field in fields(RetryPolicy)}
    assert [name for name, _ in documented] == list(actual)
    for name, default in documented:
        value = actual[name]
        assert default in ("", getattr(value, "__name__", str(value)))


def test_what_is_exported_is_mentioned() -> None:
    """No public name that the README keeps silent about."""
    assert [name for name in httpx_production.__all__ if name not in README] == []


def test_files_and_commands_exist() -> None:
    """Every file that the README links or runs is there."""
    linked = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    run = re.findall(r"uv run (?:--\S+ \S+ )*([\w/]+\.(?:py|sh))", README)
    assert [path for path in linked + run if not (ROOT / path).exists()] == []


def test_the_errors_it_quotes_are_the_real_ones() -> None:
    """Messages that stand in the text are what the code says."""
    with pytest.raises(ValueError, match="max_attempts") as caught:
        RetryPolicy(max_attempts=0)
    assert str(caught.value) in README
