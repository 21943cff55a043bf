"""httpx2 is installed, and not aliased: ours is a library of httpx then."""

import re
import subprocess
import sys
from typing import Any

import httpx
import httpx2
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuth2Client

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient

PAIRS = [(ProductionHTTPClient, OAuth2Client), (AsyncProductionHTTPClient, AsyncOAuth2Client)]


def test_ours_are_clients_of_httpx() -> None:
    """And none of httpx2."""
    assert issubclass(ProductionHTTPClient, httpx.Client)
    assert not issubclass(ProductionHTTPClient, httpx2.Client)


def test_httpx2_is_left_alone() -> None:
    """Not even imported."""
    text = "import sys, httpx_production as h; h.ProductionHTTPClient(); print(*sys.modules)"
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    modules = done.stdout.split()
    assert "httpx" in modules
    assert "httpx2" not in modules


@pytest.mark.parametrize(
    "given",
    [
        {"transport": httpx2.HTTPTransport()},
        {"mounts": {"all://": httpx2.MockTransport(lambda _: httpx2.Response(200))}},
        {"timeout": httpx2.Timeout(5)},
        {"cookies": httpx2.Cookies({"a": "b"})},
        {"auth": httpx2.BasicAuth("a", "b")},
        {"base_url": httpx2.URL("http://127.0.0.1")},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_is_httpx2_s_is_refused_by_its_name(given: dict[str, Any]) -> None:
    """By the constructor; what has no class of its own to httpx (limits, headers) is taken."""
    with pytest.raises(TypeError, match=f"{next(iter(given))}|url") as caught:
        ProductionHTTPClient(**given)
    # openai, where another test has imported it, has put its name on httpx2's Timeout.
    assert re.search(r"httpx2\.|openai\.Timeout", str(caught.value))
    limits, headers = httpx2.Limits(max_connections=3), httpx2.Headers({"a": "b"})
    assert ProductionHTTPClient(limits=limits, headers=headers).headers["a"] == "b"


@pytest.mark.parametrize("pair", [pair[::step] for pair in PAIRS for step in (1, -1)])
def test_a_class_of_both_is_refused(pair: tuple[type, type]) -> None:
    """authlib takes httpx2 where it finds it; the error says what to write."""
    said = "Mixed would be a client of httpx and httpx2 at once: call httpx2.alias_httpx()"
    with pytest.raises(TypeError, match=re.escape(said)):
        type("Mixed", pair, {})
