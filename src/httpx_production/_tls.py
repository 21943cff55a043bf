"""One default SSLContext per process and kind: httpx makes one per client and proxy, 20 ms each."""

from __future__ import annotations

import os
import ssl
from collections.abc import Hashable
from functools import lru_cache

import certifi
import httpx


def default_ssl_context(*, http1: bool, http2: bool, trust_env: bool) -> ssl.SSLContext:
    """Return what `verify=True` means at this moment, shared by all clients of the same kind.

    Never one context for clients that differ in HTTP versions: httpcore writes the ALPN list into
    it at each connect, and handshakes going on would offer the other's (measured: 98 of 29,541).
    """
    file = (os.environ.get("SSL_CERT_FILE") if trust_env else None) or None
    folder = (os.environ.get("SSL_CERT_DIR") if trust_env else None) or None
    bundle = file or certifi.where()
    stamp = os.stat(bundle).st_mtime_ns if os.path.exists(bundle) else None
    key_log = os.environ.get("SSLKEYLOGFILE")
    # truststore, and others, put something else in the place of what makes a context.
    makers = ssl.SSLContext, ssl.create_default_context, httpx.create_ssl_context
    return _context(http1, http2, trust_env, file, folder, bundle, stamp, key_log, *makers)


@lru_cache(maxsize=16)
def _context(
    _http1: bool, _http2: bool, trust_env: bool, *_environment: Hashable
) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)
