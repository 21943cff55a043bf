"""The names of httpcore's and h2's that this package uses, and that a release may change.

They are looked for in the things themselves, not in version numbers: httpcore 1.0 has them, and
httpcore2 from 2.1 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

POOL = (
    "create_connection _assign_requests_to_connections _close_connections _requests _http1 _http2 "
    "_optional_thread_lock _max_connections _max_keepalive_connections _keepalive_expiry"
)
CONNECTION = "_connection _origin _http1 _http2 _ssl_context _network_backend"
TUNNEL = "_connection _remote_origin _http1 _http2 _ssl_context"
SOCKS = "_connection _remote_origin _http1 _http2 _ssl_context _network_backend"
HTTP11 = "_network_stream _h11_state is_idle has_expired"
HTTP2 = "_network_stream _origin _keepalive_expiry"


@cache
def missing_names() -> str:
    """Name what is not there, or what happened when it was looked for; "" when all is well."""
    missing: list[str] = []
    try:
        for example, names in examples():
            kind = example if isinstance(example, type) else type(example)
            missing += [f"{kind.__name__}.{n}" for n in names.split() if not hasattr(example, n)]
    except Exception as exc:  # a class is gone, or is made in another way
        missing.append(str(exc))
    return ", ".join(missing)


def examples() -> Iterator[tuple[Any, str]]:
    """Yield an unused object of each kind, with the names that it must have."""
    core: Any = import_module("httpcore")
    http, https = core.Origin(b"http", b"x", 80), core.Origin(b"https", b"x", 443)
    for flavour, handle in ("", "handle_request"), ("Async", "handle_async_request"):
        pool, proxy, socks = (
            getattr(core, flavour + kind) for kind in ("ConnectionPool", "HTTPProxy", "SOCKSProxy")
        )
        http11, http2 = (getattr(core, f"{flavour}HTTP{n}Connection") for n in (11, 2))
        yield pool(), f"{POOL} {handle}"
        yield pool().create_connection(https), f"{CONNECTION} {handle}"
        yield proxy("http://x").create_connection(https), f"{TUNNEL} {handle}"
        yield proxy("http://x").create_connection(http), f"_connection {handle}"
        yield socks("socks5://x").create_connection(https), f"{SOCKS} {handle}"
        yield http11(https, None), f"{HTTP11} {handle}"
        yield http2(https, None), HTTP2
    yield import_module("httpcore._synchronization").Lock, "__enter__"
    yield import_module("httpcore._trace").Trace, "__enter__ __aenter__"
    frames = "_receive_goaway_frame _receive_data_frame _frame_dispatch_table _data_to_send"
    yield import_module("h2.connection").H2Connection(), frames
