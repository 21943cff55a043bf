"""One default SSLContext per process and kind: httpx makes one per client and proxy, 20 ms each."""

from __future__ import annotations

import os
import ssl
from collections.abc import Hashable
from functools import lru_cache

import certifi
import httpx

#: Where Linux distributions keep theirs: httpx takes certifi's, httpx2 the system's.
SYSTEM_STORES = (
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
)


def default_ssl_context(*, http1: bool, http2: bool, trust_env: bool) -> ssl.SSLContext:
    """Return what `verify=True` means at this moment, shared by all clients of the same kind.

    Never one context for clients that differ in HTTP versions: httpcore writes the ALPN list into
    it at each connect, and handshakes going on would offer the other's (measured: 98 of 29,541).
    """
    file = (os.environ.get("SSL_CERT_FILE") if trust_env else None) or None
    folder = (os.environ.get("SSL_CERT_DIR") if trust_env else None) or None
    stamps = tuple((path, _changed(path)) for path in ([file] if file else _stores()))
    key_log = os.environ.get("SSLKEYLOGFILE")
    # truststore, and others, put something else in the place of what makes a context.
    makers = ssl.SSLContext, ssl.create_default_context, httpx.create_ssl_context
    return _context(http1, http2, trust_env, file, folder, stamps, key_log, *makers)


def _stores() -> list[str]:
    """Return where the authorities come from unless a variable says it: all that may be used."""
    paths = ssl.get_default_verify_paths()
    return [certifi.where(), paths.openssl_cafile, paths.openssl_capath, *SYSTEM_STORES]


def _changed(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=16)
def _context(
    _http1: bool, _http2: bool, trust_env: bool, *_environment: Hashable
) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)
