"""httpx2 is installed, and not aliased: ours is a library of httpx then."""

import re
import subprocess
import sys

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


@pytest.mark.parametrize("pair", [pair[::step] for pair in PAIRS for step in (1, -1)])
def test_a_class_of_both_is_refused(pair: tuple[type, type]) -> None:
    """authlib takes httpx2 where it finds it; the error says what to write."""
    said = "Mixed would be a client of httpx and httpx2 at once: call httpx2.alias_httpx()"
    with pytest.raises(TypeError, match=re.escape(said)):
        type("Mixed", pair, {})
